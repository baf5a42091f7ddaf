//! The job directory that the agent and the activator share.
