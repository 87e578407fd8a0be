"""The backend transformers: forward passes of our own, one recorded after the other."""
