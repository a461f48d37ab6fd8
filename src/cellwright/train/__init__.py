"""Training: settings, models, the loop, the run's folder.

Nothing is imported here: Lightning and torch are loaded by the modules that need them.
"""
