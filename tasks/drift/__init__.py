"""Drift in use: does what a model gets today still look like what it was calibrated and tested on?"""
