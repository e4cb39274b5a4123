"""Training one model on one data set: the LightningModule, its optimizer and schedule, and the record a run leaves."""
