use super::super::Test;
pub fn tests() -> Vec<Test> {
    Vec::new()
}
