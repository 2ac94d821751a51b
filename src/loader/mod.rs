//! The loader: keeps verified weights in private memory, parses GGUF only after `verified`, repacks, seals.
//!
//! 1. Receive the pipe; keep what comes out of it, as bytes that nobody looks at.
//! 2. Tell the supervisor how many came; wait for `Verified`.
//! 3. Parse the header, lay the image out, pack tensor by tensor, giving source pages back.
//! 4. Seal the image and hand it over; end.
//!
//! The peak is the source and one image, less what was given back: about one copy of the weights.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
