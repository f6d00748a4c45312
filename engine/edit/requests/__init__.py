"""Requests: what an edited model should say after a prompt, the cases that test it, and the files that hold both."""
