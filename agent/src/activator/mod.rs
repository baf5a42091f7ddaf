//! The second process: activates, waits for the confirmation, otherwise rolls back.
