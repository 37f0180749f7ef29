"""How training moves a network: gradients of its loss, and what is made of them ([D])."""
