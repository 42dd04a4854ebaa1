"""What makes a model faster and changes nothing that it computes."""
