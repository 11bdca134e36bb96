"""Using a trained model: sampling, and a memory that goes on living."""
