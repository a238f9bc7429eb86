"""Ray actors and the cluster they run in: shells around plain classes. The only folder that imports ray."""
