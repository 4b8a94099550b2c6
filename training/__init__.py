"""Everything that learns, measures and decides: data, stages, loop, tracking, evaluation, registry."""
