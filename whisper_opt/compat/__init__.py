"""Drop-ins: the interfaces of other programs on this library; they import only its public names."""
