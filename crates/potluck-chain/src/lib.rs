//! How a token is made: planner, routes, sessions and steps, as state machines without IO.
