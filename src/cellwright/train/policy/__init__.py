"""Policy gradients: recurrent proximal policy optimisation on gymnasium's vector environments.

`learning.learn` is the loop. `rollouts.Collector` acts and records, `advantages.estimate` says how
much better an action was than expected, `objective.measure` what is minimised;
`evaluation.evaluate` says how good a policy is. Nothing is imported here.
"""
