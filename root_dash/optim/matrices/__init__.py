"""The matrices of a step: how they are taken from parameters, batched and written back."""
