//! What people and CI meet at the command line.
