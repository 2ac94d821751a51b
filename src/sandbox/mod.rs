//! Giving up powers: landlock, seccomp, limits; any step that fails stops the start with its name.
