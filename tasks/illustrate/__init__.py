"""Draw the explanations of some examples side by side, and write curves for `dvc plots`."""
