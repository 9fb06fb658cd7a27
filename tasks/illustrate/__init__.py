"""Draw the explanations of some examples, teacher and models side by side."""
