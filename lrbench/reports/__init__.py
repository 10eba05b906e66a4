"""Tables, figures and sites."""
