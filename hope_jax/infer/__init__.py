"""A trained model that goes on reading, remembering and writing."""
