"""What is computed: the frozen SAM2, the diffusion prior of its memories, and DiffuSAM made of both."""
