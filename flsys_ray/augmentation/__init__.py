"""Changes of sensor windows on the phone, so that training sees more than was recorded. One file a transform."""
