"""HTTP around the engine: OpenAI's wire format in, answers and denoising out. No ray here."""
