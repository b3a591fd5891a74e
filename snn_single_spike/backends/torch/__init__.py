"""Plain torch: any device, any dtype, nothing to install or compile."""
