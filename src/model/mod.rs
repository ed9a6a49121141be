//! To come.

pub struct Model {}
