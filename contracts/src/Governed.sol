// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title Actions that need a quorum of the members
/// @notice A governed function is called by the owner of one member's seat after another with the same
/// arguments. The call that completes the quorum carries the action out. Approvals count only among the
/// owners that gave them: as soon as a member is admitted, changed or removed they are void.
abstract contract Governed {
    /// @dev One action's approvals. Slot 0: given; slot 1: count (2 bytes), executed (1 byte).
    struct Approvals {
        uint256 given;
        uint16 count;
        bool executed;
    }

    mapping(bytes32 id => Approvals) private _approvals;

    /// @notice A member asked for an action. Others approve by sending `callData` to this contract.
    event ActionProposed(bytes32 indexed id, uint16 indexed proposer, bytes callData);
    /// @notice The member at seat `index` agrees, the proposer included; `approvals` do so by now.
    event ActionApproved(bytes32 indexed id, uint16 indexed index, uint16 approvals);
    /// @notice The quorum was complete and the action took effect.
    event ActionExecuted(bytes32 indexed id);

    /// @notice The owner of seat `index` has already approved this action.
    error AlreadyApproved(bytes32 id, uint16 index);
    /// @notice A quorum of the same owners has already carried this action out.
    error AlreadyExecuted(bytes32 id);

    /// @notice The id under which the approvals of a call are counted now.
    /// @param callData Selector and arguments of a governed function of this contract.
    /// @return keccak256(abi.encode(contract, chain id, electorate, keccak256(callData))).
    function actionId(bytes calldata callData) public view returns (bytes32) {
        return _actionId(_electorate(), callData);
    }

    /// @notice Who approved an action.
    /// @return given Bitmap by seat.
    /// @return count Number of approvals.
    /// @return executed Whether the action took effect.
    function approvalsOf(bytes32 id) external view returns (uint256 given, uint16 count, bool executed) {
        Approvals storage approvals = _approvals[id];
        return (approvals.given, approvals.count, approvals.executed);
    }

    /// @dev The epoch that last changed who the owners are.
    function _electorate() internal view virtual returns (uint32);

    /// @dev Seat of the MEMBER that `owner` owns, and the quorum. Reverts when it owns none.
    function _standing(address owner) internal view virtual returns (uint16 seat, uint16 quorum);

    /// @dev Count the sender's approval of this very call.
    /// @return Whether it completed the quorum, so that the caller shall act.
    function _approve() internal returns (bool) {
        (uint16 seat, uint16 quorum) = _standing(msg.sender);
        bytes32 id = _actionId(_electorate(), msg.data);
        Approvals storage approvals = _approvals[id];
        if (approvals.executed) revert AlreadyExecuted(id);
        uint256 bit = 1 << seat;
        if (approvals.given & bit != 0) revert AlreadyApproved(id, seat);
        uint16 count = approvals.count + 1;
        bool complete = count >= quorum;
        approvals.given |= bit;
        approvals.count = count;
        approvals.executed = complete;
        if (count == 1) emit ActionProposed(id, seat, msg.data);
        emit ActionApproved(id, seat, count);
        if (complete) emit ActionExecuted(id);
        return complete;
    }

    function _actionId(uint32 electorate, bytes calldata callData) private view returns (bytes32) {
        return keccak256(abi.encode(address(this), block.chainid, electorate, keccak256(callData)));
    }
}
