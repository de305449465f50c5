"""Ideas by a style-based adversarial generator that also says how long the music is.

`configuration_idea_stylegan2`: sizes, mel contract, scaling. `modeling_idea_stylegan2`: `IdeaStyleGan2Model`.
`weights_idea_stylegan2`: original checkpoints. Discriminator and losses are `training.discriminators.stylegan2` and
`training.losses.stylegan2`.
"""
