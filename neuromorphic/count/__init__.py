"""What a model really computes: exact integers that know nothing of hardware, prices or number formats."""
