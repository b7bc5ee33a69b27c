"""From encoded images and questions to uint8 tiles and token ids."""
