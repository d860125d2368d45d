"""The HTTP service: features, scores and models, answered by worker processes around `tidemill.FeatureStore`."""
