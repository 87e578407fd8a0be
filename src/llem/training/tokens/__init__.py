"""Token files as windows: their order, mixtures and packed documents."""
