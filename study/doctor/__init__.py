"""`study doctor`: what is wrong with a database and its files, and what can be mended.

Looking changes nothing. A repair is made only where no worker is at work, and after a copy of everything.
"""
