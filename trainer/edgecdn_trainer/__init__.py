"""Fine-tuning from the lab's copies. To come."""
