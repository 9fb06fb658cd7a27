"""Draw the explanations of some examples, teacher and models side by side, and write curves for `dvc plots`."""
