"""HTTP around the engine: OpenAI's wire format in, answers and denoising states out. No ray here."""
