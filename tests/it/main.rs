//! The one integration-test binary: linking is what costs on small machines. Each file is a module; add yours to the list.

mod tidy;
