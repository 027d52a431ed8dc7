"""AnnData and arrays in: layers, isoform groups, designs; the simulator."""
