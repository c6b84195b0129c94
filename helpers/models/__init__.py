"""Which model does a step load, how large is it, and may and can this machine have it?"""
