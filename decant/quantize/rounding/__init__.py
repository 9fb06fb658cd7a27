"""Rounding methods: to which of its levels each weight goes."""
