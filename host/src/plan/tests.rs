//! Table-driven tests of plans.
