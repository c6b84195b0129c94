"""How fast is the same model elsewhere: in another engine, in the stack of 2024, behind a server?"""
