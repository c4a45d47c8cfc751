"""What a distillation will cost, before it is begun."""
