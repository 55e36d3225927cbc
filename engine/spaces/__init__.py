"""What is searched, as pure data: operations, cells, chains, genotypes, and what a derived network costs. No torch."""
