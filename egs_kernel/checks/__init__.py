"""The single checks that `verify.py` puts in order. Pure: each passes silently or raises `Refused`."""
