"""Stage `code`: of which code each operation consists."""
