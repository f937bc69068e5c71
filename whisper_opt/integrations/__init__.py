"""Parts of larger libraries on the engines of this one; they import only its public names."""
