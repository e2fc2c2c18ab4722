"""Training loops: techniques fill the roles of a :class:`~privtensors.train.roles.Sampler`, a Bounder and a Noiser."""
