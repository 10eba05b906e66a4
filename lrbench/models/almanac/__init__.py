"""The bundled model: a small trained Llama and the generated world that it knows."""
