"""The API, its stream and its guard, on a real recorded file."""
