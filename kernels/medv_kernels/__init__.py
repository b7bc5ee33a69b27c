"""Operations of the denoising step. `reference` is plain torch: the truth, and the CPU path."""
